module github.com/kata-qat/kata-qat/test/tools/protogen

go 1.26.6

tool (
	github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
	google.golang.org/protobuf/cmd/protoc-gen-go
)

require (
	github.com/bufbuild/protocompile v0.14.1
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/containerd/ttrpc v1.2.10 // indirect
	golang.org/x/sync v0.8.0 // indirect
)
