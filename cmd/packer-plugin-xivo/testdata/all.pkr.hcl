# Every component of the plugin once.

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
  }
}

variable "source_image" {
  type = string
}

variable "output_directory" {
  type    = string
  default = "output"
}

variable "secret" {
  type      = string
  default   = "four red pens on a mat"
  sensitive = true
}

data "xivo-user-data" "mesh" {
  peers  = ["192.168.1.21"]
  secret = var.secret
}

source "xivo-nspawn" "bake" {
  source_image     = var.source_image
  output_directory = "${var.output_directory}/image"
}

source "null" "seed" {
  communicator = "none"
}

build {
  name    = "bake"
  sources = ["source.xivo-nspawn.bake"]

  provisioner "xivo-install" {
    xivo_version = "16.03"
  }

  provisioner "xivo-seal" {
    firstboot_binary = var.source_image
  }
}

build {
  sources = ["source.null.seed"]

  provisioner "shell-local" {
    inline = ["cat <<'END'\n${data.xivo-user-data.mesh.user_data}\nEND"]
  }

  post-processor "xivo-seed" {
    output_directory = var.output_directory
    user_data        = data.xivo-user-data.mesh.user_data

    node {
      hostname  = "node1"
      interface = "eth0"
      address   = "192.168.1.21/24"
    }
  }
}
