package main

import (
	"context"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

func etcdConfig(folder, clientURL, peerURL string) (*embed.Config, error) {
	clients, err := url.Parse(clientURL)
	if err != nil {
		return nil, err
	}
	peers, err := url.Parse(peerURL)
	if err != nil {
		return nil, err
	}
	settings := embed.NewConfig()
	settings.Dir = folder
	settings.ListenClientUrls = []url.URL{*clients}
	settings.AdvertiseClientUrls = settings.ListenClientUrls
	settings.ListenPeerUrls = []url.URL{*peers}
	settings.AdvertisePeerUrls = settings.ListenPeerUrls
	settings.InitialCluster = settings.InitialClusterFromName(settings.Name)
	settings.UnsafeNoFsync = true
	settings.LogLevel = "warn"
	return settings, nil
}

// kubeletContext is as in cmd/kubelet: the command sets its own signal handler.
func kubeletContext() context.Context {
	return context.Background()
}
