// The one program of the test cluster's own image. Without flags it is the sandbox container of a pod and waits to be
// ended. With -a it makes or removes the folder of a volume, as local-path-provisioner's helper pod.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	action := flag.String("a", "", "create or delete")
	path := flag.String("p", "", "folder of the volume")
	flag.String("s", "", "size asked for; not enforced")
	flag.String("m", "", "volume mode; always Filesystem here")
	flag.Parse()
	if err := run(*action, *path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(action, path string) error {
	switch action {
	case "":
		wait()
		return nil
	case "create":
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		return os.Chmod(path, 0o777) // whoever the pod runs as may write, whatever the umask
	case "delete":
		return os.RemoveAll(path)
	}
	return fmt.Errorf("no such action: %q", action)
}

// wait also reaps orphans, for pods that share their process namespace.
func wait() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
