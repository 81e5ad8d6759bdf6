# Everything that is built lands in dist/ or in the cache,
# $XDG_CACHE_HOME/packer-plugin-xivo or ~/.cache/packer-plugin-xivo.

VERSION = $(shell sed -n '/= version.NewPluginVersion/{s/[^"]*"\([^"]*\)", "\([^"]*\)".*/\1-\2/;s/-$$//;p;}' packer/version/version.go)
ARCH := $(shell go env GOARCH)
# What the plugin carries xivo-firstboot for: the machines of XiVO, and this one.
MACHINES := $(sort amd64 386 $(ARCH))

export GOTOOLCHAIN := local
GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false
FIRSTBOOT_LDFLAGS := -s -w -X main.version=$(VERSION)
STATICCHECK = go tool -modfile=test/tools/staticcheck/go.mod staticcheck
# Built and then run, not `go run`: a killed make takes it along.
LAB = go build -o dist/lab ./test/lab/cmd/lab && exec dist/lab

.DEFAULT_GOAL := help
.PHONY: help build check test test-crash test-vm test-kernels demo shell bench bench-bake dist lint fmt generate clean

# Of each target: what it does | what it needs besides Go | how long it takes on
# two cores with a warm build cache.
help: ## list the targets | nothing | at once
	@{ echo 'TARGET|DOES|NEEDS|TAKES'; sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST); } | sed 's/ *| */|/g' | awk -F'|' \
		'{ for (i = 1; i <= NF; i++) { cell[NR, i] = $$i; if (length($$i) > width[i]) width[i] = length($$i) } } \
		END { for (r = 1; r <= NR; r++) { for (i = 1; i < 4; i++) printf "%-*s  ", width[i], cell[r, i]; print cell[r, 4] } }'

build: ## the plugin and xivo-firstboot, for this machine, into dist/ | nothing | 15 s
	@rm -rf packer/embedded/linux_*
	for arch in $(MACHINES); do \
		GOOS=linux GOARCH=$$arch $(GO_BUILD) -ldflags '$(FIRSTBOOT_LDFLAGS)' -o packer/embedded/linux_$$arch/xivo-firstboot ./cmd/xivo-firstboot || exit; \
	done
	$(GO_BUILD) -ldflags '-s -w' -o dist/packer-plugin-xivo ./cmd/packer-plugin-xivo
	@cp packer/embedded/linux_$(ARCH)/xivo-firstboot dist/

check: lint ## lint, and the tests that need neither root nor a server | nothing | under 1 min
	@XIVO_LAB= XIVO_KERNELS= XIVO_SERVER_ROOT= XIVO_CONSUL= XIVO_PACKER= XIVO_PACKER_OLD= go test ./...

test: ## lint and all tests, on real machines too | root; installs Debian packages; 12 GB | 20 min (first time 40)
	@$(LAB) test

test-crash: ## kill a first boot 200 times and more, at every step, and lose nothing | root | 10 min
	@$(LAB) crash

ACCELERATOR ?=
test-vm: ## bake in a virtual machine, boot clones, clone a node (ACCELERATOR=tcg: do not try KVM) | root; KVM or patience | 5 min (emulated 20)
	@XIVO_ACCELERATOR=$(ACCELERATOR) && export XIVO_ACCELERATOR && $(LAB) vm

KERNELS ?= 1
KERNELS_MIRROR ?=
test-kernels: ## the mesh's own network on old kernels (KERNELS="wheezy jessie" KERNELS_MIRROR=URL: where Debian's archive is reached) | root; QEMU | 15 min
	@XIVO_KERNELS='$(KERNELS)' XIVO_KERNELS_MIRROR='$(KERNELS_MIRROR)' go test -count=1 -v -timeout 3h ./test/kernels

demo: ## bake an image, clone three machines, watch them join (KEEP=1: and keep them running) | root | 2 min (first time 20)
	@go build -o dist/demo ./test/e2e/demo && exec dist/demo $(if $(KEEP),-keep)

NODE ?= 1
shell: ## a shell in machine NODE=n of a demo that KEEP=1 keeps running | root | at once
	@$(LAB) shell $(NODE)

bench: ## the benchmarks | nothing | 2 min
	go test -run '^$$' -bench . -benchmem ./...

bench-bake: ## time and size of one image, baked under nspawn and in a virtual machine | root | 10 min
	@$(LAB) bench-bake

dist: ## what is released, into dist/release: plugin archives, Debian packages, checksums | nothing | 5 min
	@go build -o dist/dist ./cmd/dist && exec dist/dist

lint: ## go vet, gofmt, staticcheck and the architecture test | nothing | 20 s
	go vet ./...
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted; run make fmt" >&2; exit 1; fi
	$(STATICCHECK) ./...
	go test ./test/architecture

fmt: ## format the sources | nothing | at once
	gofmt -w .

generate: ## what is generated from the sources | nothing | 30 s
	go generate ./...

clean: ## remove what was built here; the cache stays | nothing | at once
	rm -rf dist packer/embedded/linux_*
