# A template of a XiVO on Proxmox VE, baked in a clone of a machine that has XiVO
# installed:
#
#   export PROXMOX_URL=https://pve.example.com:8006/api2/json
#   export PROXMOX_USERNAME='packer@pve!bake' PROXMOX_TOKEN='…'
#   packer init xivo.pkr.hcl
#   read -rsp 'Password of root: ' PKR_VAR_ssh_password && export PKR_VAR_ssh_password
#   packer build -var node=pve -var source_vm=xivo xivo.pkr.hcl
#
# The machine needs qemu-guest-agent: it says at which address the machine is.

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
    proxmox = {
      source  = "github.com/hashicorp/proxmox"
      version = ">= 1.1.0"
    }
  }
}

variable "node" {
  type        = string
  description = "The node of the cluster that bakes."
}

variable "source_vm" {
  type        = string
  description = "The machine or template with XiVO installed."
}

variable "insecure_skip_tls_verify" {
  type        = bool
  default     = false
  description = "Take any certificate from PROXMOX_URL: a new Proxmox has one that it signed itself."
}

variable "bridge" {
  type        = string
  default     = "vmbr0"
  description = "The bridge that the machine is attached to."
}

variable "cloud_init_storage" {
  type        = string
  default     = "local-lvm"
  description = "The storage of the clones' cloud-init drives."
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

source "proxmox-clone" "xivo" {
  insecure_skip_tls_verify = var.insecure_skip_tls_verify

  node                 = var.node
  clone_vm             = var.source_vm
  full_clone           = true
  vm_name              = "xivo-bake"
  template_name        = "xivo-${replace(var.xivo_version, ".", "-")}"
  template_description = "XiVO ${var.xivo_version}, sealed: clones become themselves at their first boot."

  os         = "l26"
  memory     = 2048
  cores      = 2
  qemu_agent = true

  network_adapters {
    model  = "virtio"
    bridge = var.bridge
  }

  # Clones get their user data on this drive.
  cloud_init              = true
  cloud_init_storage_pool = var.cloud_init_storage

  ssh_username         = var.ssh_username
  ssh_password         = var.ssh_password
  ssh_private_key_file = var.ssh_private_key_file
}

build {
  sources = ["source.proxmox-clone.xivo"]

  # What all clones are to have goes here, before the seal.

  provisioner "xivo-seal" {
    allow_configured = var.allow_configured
    firstboot_binary = var.firstboot_binary
    manifest_file    = "${var.output_directory}/xivo-seal-manifest.json"
    values_file      = var.values_file
    sudo             = var.ssh_username != "root"
  }
}
