# The two commands that matter are `make demo` and `make test`; both install what is missing of deps.txt first.
SHELL := /bin/bash

COMMANDS := $(notdir $(wildcard cmd/*))
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

.PHONY: all build demo test bench soak lint fuzz generate deps format clean
all: build

build: ## static binaries of every command into bin/
	@mkdir -p bin
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X github.com/starpatch/starpatch/internal/version.Version=$(VERSION)' -o bin/ ./cmd/...

demo: ## the tutorial on a real 2+2+2 cluster; KEEP=1 leaves it running
	@scripts/need-root demo
	@scripts/deps
	@$(MAKE) -s build
	@demo/tutorial.sh

test: ## everything a change must pass
	@scripts/test

bench: ## every benchmark, beside the Python baseline; results go to docs/perf.md by hand
	@scripts/deps
	@$(MAKE) -s build
	go test -run '^$$' -bench . -benchmem ./...

soak: ## the long proofs; SEED=N repeats a run
	@scripts/need-root soak
	@scripts/deps
	@$(MAKE) -s build
	go test -timeout 3h -v -run Soak $$(grep -rl --include='*_test.go' 'flag.Bool("soak"' . | xargs -n1 dirname | sort -u) -args -soak $(if $(SEED),-seed $(SEED))

lint: ## vet, the fixes go itself suggests, staticcheck
	go vet ./...
	@test -z "$$(go fix -diff ./... 2>&1 | tee /dev/stderr)"
	go tool -modfile=tools/go.mod staticcheck ./...

fuzz: ## every fuzz target; FUZZTIME=10s each by default
	@scripts/fuzz $(or $(FUZZTIME),10s)

generate: ## generated files that the tree carries
	@mkdir -p bin/tools
	@cd tools && CGO_ENABLED=0 go build -o ../bin/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	@go generate ./...

deps: ## Debian packages
	@scripts/deps

format:
	gofmt -w .

clean:
	rm -rf bin
