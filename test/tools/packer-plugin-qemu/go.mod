module github.com/xivo-mesh/packer-plugin-xivo/test/tools/packer-plugin-qemu

go 1.26.0
