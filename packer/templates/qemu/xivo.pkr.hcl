# A golden image of a XiVO, baked in a virtual machine under QEMU:
#
#   packer init xivo.pkr.hcl
#   read -rsp 'Password of root: ' PKR_VAR_ssh_password && export PKR_VAR_ssh_password
#   packer build -var source_image=xivo.qcow2 xivo.pkr.hcl
#
# qemu.sh, which belongs beside this file, tries whether KVM works, and emulates
# where it does not: the build then takes some ten times longer.

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.0.9"
    }
  }
}

variable "source_image" {
  type        = string
  description = "A disk image (qcow2, raw) with XiVO installed: a file or a URL."
}

variable "source_checksum" {
  type        = string
  default     = "none"
  description = "What source_image must be, for example sha256:…; none does not check."
}

variable "disk_size" {
  type        = string
  default     = null
  description = "For example 20G; the partitions stay as they are. By default as the source."
}

variable "accelerator" {
  type        = string
  default     = null
  description = "What QEMU runs on, kvm or tcg (emulation). By default the one that wins a trial: run qemu.sh to see which."
}

variable "ssh_timeout" {
  type        = string
  default     = "15m"
  description = "How long the machine may take to boot; under tcg that is minutes."
}

variable "xivo_version" {
  type        = string
  default     = "16.03"
  description = "Version of the XiVO in the source; part of the image's name."
}

variable "output_directory" {
  type        = string
  default     = "output-xivo"
  description = "Where the image and the manifest of its seal go."
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

source "qemu" "xivo" {
  disk_image       = true
  iso_url          = var.source_image
  iso_checksum     = var.source_checksum
  output_directory = var.output_directory
  vm_name          = "xivo-${var.xivo_version}.qcow2"
  format           = "qcow2"
  disk_compression = true
  disk_size        = var.disk_size
  skip_resize_disk = var.disk_size == null

  headless       = true
  memory         = 2048
  cpus           = 2
  cpu_model      = "max" # of whatever runs the machine
  net_device     = "virtio-net"
  disk_interface = "virtio"

  # The seal writes zeros over what is free: they are kept as holes.
  disk_detect_zeroes = "unmap"
  disk_discard       = "unmap"

  # The builder itself would take KVM wherever /dev/kvm opens. Kernels for clouds
  # find their disks on a pc, not on a q35.
  qemu_binary = var.accelerator == null ? "${path.root}/qemu.sh" : "qemu-system-x86_64"
  qemuargs    = concat([["-machine", "type=pc"]], var.accelerator == null ? [] : [["-accel", var.accelerator]])

  ssh_username         = var.ssh_username
  ssh_password         = var.ssh_password
  ssh_private_key_file = var.ssh_private_key_file
  ssh_timeout          = var.ssh_timeout
  shutdown_command     = var.ssh_username == "root" ? "poweroff" : "sudo -n poweroff"
}

build {
  sources = ["source.qemu.xivo"]

  # What all clones are to have goes here, before the seal.

  provisioner "xivo-seal" {
    allow_configured = var.allow_configured
    firstboot_binary = var.firstboot_binary
    manifest_file    = "${var.output_directory}/xivo-seal-manifest.json"
    values_file      = var.values_file
    sudo             = var.ssh_username != "root"
  }
}
