# A golden image of a XiVO, baked without a hypervisor:
#
#   packer init xivo.pkr.hcl
#   sudo -E packer build -var source_image=xivo.qcow2 xivo.pkr.hcl
#
# Boot clones of it with a `xivo:` key in their cloud-init user data.

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
  }
}

variable "source_image" {
  type        = string
  description = "A machine with XiVO installed: a disk image (raw, qcow2) or the tar of its root."
}

variable "xivo_version" {
  type        = string
  default     = "16.03"
  description = "Version of the XiVO in source_image; part of the image's name."
}

variable "output_directory" {
  type        = string
  default     = "output-xivo"
  description = "Where the image and the manifest of its seal go."
}

variable "disk_size" {
  type        = string
  default     = null
  description = "For example 20G. By default as the source, or 8G for a root tar."
}

variable "allow_configured" {
  type        = bool
  default     = false
  description = "Seal a XiVO that has passed its wizard: every clone then shares what the wizard wrote."
}

variable "values_file" {
  type        = string
  default     = null
  description = "Where what was the source's own is written, to search the image for it with xivo-firstboot seal --prove; by default nowhere. It holds secrets."
}

variable "firstboot_binary" {
  type        = string
  default     = null
  description = "A static Linux build of xivo-firstboot; by default the one that the plugin carries."
}

source "xivo-nspawn" "xivo" {
  source_image     = var.source_image
  output_directory = var.output_directory
  image_name       = "xivo-${var.xivo_version}"
  format           = "qcow2"
  disk_size        = var.disk_size
}

build {
  sources = ["source.xivo-nspawn.xivo"]

  # What all clones are to have goes here, before the seal.

  provisioner "xivo-seal" {
    allow_configured = var.allow_configured
    firstboot_binary = var.firstboot_binary
    manifest_file    = "${var.output_directory}/xivo-seal-manifest.json"
    values_file      = var.values_file
  }
}
