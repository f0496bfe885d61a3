// Protogen generates the Go code of .proto files with the generators that this
// module pins, without an installed protoc: it compiles the files itself and
// speaks to the generators as protoc does.
//
//	go -C test/tools/protogen run . -root ../../.. internal/api/v1/node.proto
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/pluginpb"
)

var generators = []string{
	"google.golang.org/protobuf/cmd/protoc-gen-go",
	"github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc",
}

func main() {
	root := flag.String("root", ".", "directory that the files are named below and generated into")
	flag.Parse()
	for _, file := range flag.Args() {
		if err := generate(*root, file); err != nil {
			fmt.Fprintf(os.Stderr, "protogen: %s: %v\n", file, err)
			os.Exit(1)
		}
	}
}

func generate(root, file string) error {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments go into the generated code
	}
	files, err := compiler.Compile(context.Background(), file)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{file},
		Parameter:      proto.String("paths=source_relative"),
	}
	for _, f := range files {
		request.ProtoFile = append(request.ProtoFile, protoutil.ProtoFromFileDescriptor(f))
	}
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	for _, g := range generators {
		if err := run(root, g, in); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(g), err)
		}
	}
	return nil
}

// run gives one generator the request and writes the files that it answers with.
func run(root, generator string, in []byte) error {
	cmd := exec.Command("go", "tool", generator)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	response := new(pluginpb.CodeGeneratorResponse)
	if err := proto.Unmarshal(out, response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", strings.TrimSpace(response.GetError()))
	}
	for _, f := range response.File {
		if err := os.WriteFile(filepath.Join(root, f.GetName()), []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
