# The seed of one node, which is to be a clone of an image that there is.

packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = ">= 0.1.0"
    }
  }
}

variable "image" {
  type = string
}

variable "bridge" {
  type = string
}

variable "output_directory" {
  type = string
}

variable "hostname" {
  type = string
}

variable "instance_id" {
  type = string
}

variable "address" {
  type = string
}

variable "gateway" {
  type = string
}

variable "user_data" {
  type      = string
  sensitive = true
}

source "null" "clone" {
  communicator = "none"
}

build {
  sources = ["source.null.clone"]

  post-processor "xivo-seed" {
    image            = var.image
    bridge           = var.bridge
    output_directory = var.output_directory
    user_data        = var.user_data

    node {
      hostname    = var.hostname
      instance_id = var.instance_id
      interface   = "eth0"
      address     = var.address
      gateway     = var.gateway
    }
  }
}
