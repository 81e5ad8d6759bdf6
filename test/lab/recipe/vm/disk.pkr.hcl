# A XiVO on a disk that boots by itself, as people have one before they bake:
# it ran before, cloud-init included, and its owner logs in as root with a key.

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
  type = string
}

variable "authorized_key" {
  type = string
}

source "xivo-nspawn" "disk" {
  source_image     = var.source_image
  output_directory = var.output_directory
  image_name       = "xivo"
  format           = "qcow2"
}

build {
  sources = ["source.xivo-nspawn.disk"]

  provisioner "shell" {
    inline = [
      "install -d -m 700 /root/.ssh",
      "echo '${var.authorized_key}' >/root/.ssh/authorized_keys",
      "install -d /var/lib/cloud/seed/nocloud",
      "echo 'instance-id: iid-owner' >/var/lib/cloud/seed/nocloud/meta-data",
      "echo '#cloud-config' >/var/lib/cloud/seed/nocloud/user-data",
      "echo '{version: 1, config: [{type: physical, name: eth0, subnets: [{type: dhcp}]}]}' >/var/lib/cloud/seed/nocloud/network-config",
      "cloud-init init --local",
      "cloud-init init",
      "cloud-init modules --mode=config",
      "cloud-init modules --mode=final",
      # What a container does not keep and a machine does.
      "touch /var/lib/dhcp/dhclient.eth0.leases",
      "head -c 512 /dev/urandom >/var/lib/systemd/random-seed",
    ]
  }
}
