# An image of a XiVO on OpenStack, baked in a server that boots from an image with
# XiVO installed:
#
#   . openrc.sh
#   packer init xivo.pkr.hcl
#   read -rsp 'Password of root: ' PKR_VAR_ssh_password && export PKR_VAR_ssh_password
#   packer build -var source_image=xivo -var flavor=m1.small xivo.pkr.hcl

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
    openstack = {
      source  = "github.com/hashicorp/openstack"
      version = ">= 1.1.0"
    }
  }
}

variable "source_image" {
  type        = string
  description = "The name of the image with XiVO installed."
}

variable "flavor" {
  type        = string
  description = "The flavor of the server that bakes."
}

variable "networks" {
  type        = list(string)
  default     = null
  description = "The ids of its networks; by default the only one that there is."
}

variable "floating_ip_network" {
  type        = string
  default     = null
  description = "The network of a floating address to reach it at, if it needs one."
}

variable "xivo_version" {
  type        = string
  default     = "16.03"
  description = "Version of the XiVO in the source; part of the image's name."
}

variable "output_directory" {
  type        = string
  default     = "output-xivo"
  description = "Where the manifest of the seal goes."
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

variable "ssh_username" {
  type        = string
  default     = "root"
  description = "Who logs in to the machine; anyone but root needs sudo without a password."
}

variable "ssh_password" {
  type        = string
  default     = null
  sensitive   = true
  description = "The password of ssh_username, or null for a key."
}

variable "ssh_private_key_file" {
  type        = string
  default     = null
  description = "The key of ssh_username, or null for a password."
}

source "openstack" "xivo" {
  source_image_name   = var.source_image
  image_name          = "xivo-${var.xivo_version}"
  flavor              = var.flavor
  networks            = var.networks
  floating_ip_network = var.floating_ip_network

  ssh_username         = var.ssh_username
  ssh_password         = var.ssh_password
  ssh_private_key_file = var.ssh_private_key_file
}

build {
  sources = ["source.openstack.xivo"]

  # What all clones are to have goes here, before the seal.

  provisioner "xivo-seal" {
    allow_configured = var.allow_configured
    firstboot_binary = var.firstboot_binary
    manifest_file    = "${var.output_directory}/xivo-seal-manifest.json"
    values_file      = var.values_file
    sudo             = var.ssh_username != "root"
  }
}
