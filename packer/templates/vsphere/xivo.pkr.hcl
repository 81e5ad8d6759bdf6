# A template of a XiVO on vSphere, baked in a clone of a machine that has XiVO
# installed:
#
#   export VSPHERE_SERVER=vcenter.example.com VSPHERE_USER='…' VSPHERE_PASSWORD='…'
#   packer init xivo.pkr.hcl
#   read -rsp 'Password of root: ' PKR_VAR_ssh_password && export PKR_VAR_ssh_password
#   packer build -var cluster=main -var source_vm=xivo xivo.pkr.hcl
#
# The machine needs open-vm-tools: they say at which address the machine is.

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
    vsphere = {
      source  = "github.com/hashicorp/vsphere"
      version = ">= 1.2.0"
    }
  }
}

variable "vcenter_server" {
  type        = string
  default     = env("VSPHERE_SERVER")
  description = "The host name of vCenter."
}

variable "vcenter_username" {
  type        = string
  default     = env("VSPHERE_USER")
  description = "Who logs in to vCenter."
}

variable "vcenter_password" {
  type        = string
  default     = env("VSPHERE_PASSWORD")
  sensitive   = true
  description = "The password of vcenter_username."
}

variable "insecure_connection" {
  type        = bool
  default     = false
  description = "Take any certificate from vCenter."
}

variable "datacenter" {
  type        = string
  default     = null
  description = "The data center, if there are several."
}

variable "cluster" {
  type        = string
  description = "The cluster that bakes."
}

variable "host" {
  type        = string
  default     = null
  description = "The host of the cluster that bakes; needed where the cluster has no DRS."
}

variable "datastore" {
  type        = string
  default     = null
  description = "The datastore of the machine, if there are several."
}

variable "folder" {
  type        = string
  default     = null
  description = "The folder of the template."
}

variable "source_vm" {
  type        = string
  description = "The machine or template with XiVO installed."
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

source "vsphere-clone" "xivo" {
  vcenter_server      = var.vcenter_server
  username            = var.vcenter_username
  password            = var.vcenter_password
  insecure_connection = var.insecure_connection

  datacenter = var.datacenter
  cluster    = var.cluster
  host       = var.host
  datastore  = var.datastore
  folder     = var.folder

  template            = var.source_vm
  vm_name             = "xivo-${var.xivo_version}"
  convert_to_template = true

  CPUs = 2
  RAM  = 2048

  ssh_username         = var.ssh_username
  ssh_password         = var.ssh_password
  ssh_private_key_file = var.ssh_private_key_file
  shutdown_command     = var.ssh_username == "root" ? "poweroff" : "sudo -n poweroff"
}

build {
  sources = ["source.vsphere-clone.xivo"]

  # What all clones are to have goes here, before the seal.

  provisioner "xivo-seal" {
    allow_configured = var.allow_configured
    firstboot_binary = var.firstboot_binary
    manifest_file    = "${var.output_directory}/xivo-seal-manifest.json"
    values_file      = var.values_file
    sudo             = var.ssh_username != "root"
  }
}
