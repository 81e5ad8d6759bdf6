# An AMI of a XiVO, baked in an instance of an AMI that has XiVO installed:
#
#   export AWS_PROFILE=…
#   packer init xivo.pkr.hcl
#   packer build -var region=eu-west-3 -var source_ami=ami-… xivo.pkr.hcl
#
# Without a password or a key, the instance gets a key that lasts for the build;
# cloud-init gives it to `admin` on Debian.

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.2.0"
    }
  }
}

variable "region" {
  type        = string
  description = "The region that bakes."
}

variable "source_ami" {
  type        = string
  description = "The AMI with XiVO installed."
}

variable "instance_type" {
  type        = string
  default     = "t3.small"
  description = "The type of the instance that bakes."
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
  default     = "admin"
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

source "amazon-ebs" "xivo" {
  region        = var.region
  source_ami    = var.source_ami
  instance_type = var.instance_type
  ami_name      = "xivo-${var.xivo_version}-${formatdate("YYYYMMDD-hhmmss", timestamp())}"

  ssh_username         = var.ssh_username
  ssh_password         = var.ssh_password
  ssh_private_key_file = var.ssh_private_key_file
}

build {
  sources = ["source.amazon-ebs.xivo"]

  # What all clones are to have goes here, before the seal.

  provisioner "xivo-seal" {
    allow_configured = var.allow_configured
    firstboot_binary = var.firstboot_binary
    manifest_file    = "${var.output_directory}/xivo-seal-manifest.json"
    values_file      = var.values_file
    sudo             = var.ssh_username != "root"
  }
}
