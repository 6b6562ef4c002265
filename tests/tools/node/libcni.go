// Calls libcni as CRI-O does: the arguments and the order of pkg/ocicni/ocicni.go, CHECK and DEL with the list from the cache.
// `add LIST CONTAINER NETNS NAMESPACE NAME UID`, `check CONTAINER [NETNS]`, `del CONTAINER`, and `gc LIST CONTAINER...` with
// those that live. What a libcni before 1.2 has added has no namespace in the cache.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

const interfaceName = "eth0"

var cni = libcni.NewCNIConfig([]string{"/opt/cni/bin"}, nil)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(verb string, words []string) error {
	ctx := context.Background()
	switch verb {
	case "add":
		return add(ctx, words)
	case "check", "del":
		return fromCache(ctx, verb, words[0], words[1:])
	case "gc":
		return gc(ctx, words[0], words[1:])
	}
	return fmt.Errorf("no verb %s", verb)
}

func add(ctx context.Context, words []string) error {
	list, err := libcni.ConfListFromFile(words[0])
	if err != nil {
		return err
	}
	if _, err := cni.ValidateNetworkList(ctx, list); err != nil {
		return err
	}
	container := words[1]
	_, err = cni.AddNetworkList(ctx, list, &libcni.RuntimeConf{
		ContainerID: container,
		NetNS:       words[2],
		IfName:      interfaceName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", words[3]},
			{"K8S_POD_NAME", words[4]},
			{"K8S_POD_INFRA_CONTAINER_ID", container},
			{"K8S_POD_UID", words[5]},
		},
		CapabilityArgs: map[string]interface{}{},
	})
	return err
}

func fromCache(ctx context.Context, verb, container string, netns []string) error {
	attachments, err := cni.GetCachedAttachments(container)
	if err != nil {
		return err
	}
	for _, one := range attachments {
		if one.IfName != interfaceName {
			continue
		}
		list, err := libcni.ConfListFromBytes(one.Config)
		if err != nil {
			return err
		}
		config := &libcni.RuntimeConf{
			ContainerID:    container,
			NetNS:          one.NetNS,
			IfName:         one.IfName,
			Args:           one.CniArgs,
			CapabilityArgs: one.CapabilityArgs,
		}
		if len(netns) > 0 {
			config.NetNS = netns[0]
		}
		if verb == "check" {
			return cni.CheckNetworkList(ctx, list, config)
		}
		return cni.DelNetworkList(ctx, list, config)
	}
	return fmt.Errorf("the cache has no %s of %s", interfaceName, container)
}

func gc(ctx context.Context, file string, containers []string) error {
	list, err := libcni.ConfListFromFile(file)
	if err != nil {
		return err
	}
	living := []types.GCAttachment{}
	for _, container := range containers {
		living = append(living, types.GCAttachment{ContainerID: container, IfName: interfaceName})
	}
	return cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: living})
}
