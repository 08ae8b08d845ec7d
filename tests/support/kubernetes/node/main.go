// Package main holds every component of a one-node Kubernetes in one binary; the first argument names the component.
//
// Kubernetes, etcd, CoreDNS and metrics-server share most of their packages, so that one binary builds in a fraction of
// the time that separate ones need.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/template"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	genericserver "k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubecontrollermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	metricsserver "sigs.k8s.io/metrics-server/cmd/metrics-server/app"
)

// commands are constructors, because each command registers the flags and feature gates of the whole process.
var commands = map[string]func() *cobra.Command{
	"kube-apiserver":          kubeapiserver.NewAPIServerCommand,
	"kube-controller-manager": kubecontrollermanager.NewControllerManagerCommand,
	"kube-proxy":              kubeproxy.NewProxyCommand,
	"kube-scheduler":          func() *cobra.Command { return kubescheduler.NewSchedulerCommand() },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"metrics-server": func() *cobra.Command {
		return metricsserver.NewMetricsServerCommand(genericserver.SetupSignalHandler())
	},
}

// plugins of CoreDNS that are compiled in, in the order in which a query passes them.
var plugins = []string{"errors", "cache", "template", "kubernetes"}

func main() {
	if len(os.Args) < 2 {
		fail("no component given")
	}
	os.Args = os.Args[1:]
	component := os.Args[0]
	switch component {
	case "coredns":
		dnsserver.Directives = plugins
		coremain.Run()
	case "etcd":
		etcdmain.Main(os.Args)
	default:
		command, known := commands[component]
		if !known {
			fail("no component " + component)
		}
		os.Exit(cli.Run(command()))
	}
}

func fail(reason string) {
	names := []string{"coredns", "etcd"}
	for name := range commands {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintf(os.Stderr, "%s; components: %s\n", reason, strings.Join(names, ", "))
	os.Exit(2)
}
