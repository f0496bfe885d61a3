// Command envoycheck checks an Envoy configuration against Envoy's own API definitions:
// unknown fields, wrong types, and what the definitions' rules forbid. It is no
// Envoy: whether an extension is in a build, it does not know.
//
//	envoycheck BOOTSTRAP SDS
package main

import (
	"errors"
	"fmt"
	"os"

	_ "github.com/envoyproxy/go-control-plane/contrib/envoy/extensions/private_key_providers/qat/v3alpha"
	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: envoycheck BOOTSTRAP SDS")
		os.Exit(2)
	}
	err := errors.Join(check(os.Args[1], new(bootstrap.Bootstrap)), check(os.Args[2], new(discovery.DiscoveryResponse)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(file string, m proto.Message) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if b, err = yaml.YAMLToJSONStrict(b); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := validate(m); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// validate applies the rules to a message and to what it has packed up: a generated
// ValidateAll does not look into an Any.
func validate(m proto.Message) error {
	var errs []error
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		errs = append(errs, v.ValidateAll())
	}
	each(m.ProtoReflect(), func(any *anypb.Any) {
		inner, err := any.UnmarshalNew()
		if err == nil {
			err = validate(inner)
		}
		errs = append(errs, err)
	})
	return errors.Join(errs...)
}

// each calls f for every Any in a message.
func each(m protoreflect.Message, f func(*anypb.Any)) {
	if any, ok := m.Interface().(*anypb.Any); ok {
		f(any)
		return
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				each(v.Message(), f)
				return true
			})
		case field.IsList() && field.Message() != nil:
			for i := range v.List().Len() {
				each(v.List().Get(i).Message(), f)
			}
		case !field.IsList() && !field.IsMap() && field.Message() != nil:
			each(v.Message(), f)
		}
		return true
	})
}
