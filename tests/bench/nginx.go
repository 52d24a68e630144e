package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// nginx is the peer: Debian's, unpacked by scripts/setup.sh bench.
const nginxPath = ".cache/bench/nginx/usr/sbin/nginx"

// nginxConf serves one folder over TLS 1.3. It is as fast as nginx gets without
// tuning of the machine: no access log, files kept open.
const nginxConf = `
daemon off;
%[5]s
worker_processes 2;
error_log stderr warn;
pid %[1]s/pid;
events { worker_connections 1024; }
http {
	access_log off;
	open_file_cache max=16;
	sendfile on;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]s ssl;
		ssl_protocols TLSv1.3;
		ssl_certificate %[3]s;
		ssl_certificate_key %[4]s;
		root %[1]s/www;
	}
}
`

// A nginx is running.
type nginx struct {
	*process
	at string // address
}

const nginxFile = "/timestamp.json"

// startNginx serves a file of content with the certificate and key.
func startNginx(ctx context.Context, dir, cert, key string, content []byte) (*nginx, error) {
	if _, err := os.Stat(nginxPath); err != nil {
		return nil, fmt.Errorf("%w: %s; run scripts/setup.sh bench", errNoTool, nginxPath)
	}
	at, err := freePort()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "www"), 0o755); err != nil {
		return nil, fmt.Errorf("cannot prepare nginx: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "www", nginxFile), content, 0o644); err != nil {
		return nil, fmt.Errorf("cannot prepare nginx: %w", err)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // its workers would be nobody's, who cannot read our folder
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, strings.TrimSpace(nginxConf)+"\n", dir, at, cert, key, user), 0o644); err != nil {
		return nil, fmt.Errorf("cannot prepare nginx: %w", err)
	}
	p, err := start(exec.CommandContext(ctx, nginxPath, "-p", dir, "-c", conf, "-e", "stderr"))
	if err != nil {
		return nil, err
	}
	n := &nginx{process: p, at: at}
	if err := p.until(ctx, "ready", 10*time.Second, func() bool { return answers(at) }); err != nil {
		p.stop()
		return nil, err
	}
	return n, nil
}

// processes returns the master and its workers.
func (n *nginx) processes() ([]int, error) {
	workers, err := children(n.pid())
	return append(workers, n.pid()), err
}

// get makes a request for the file, which answers 304 if etag is right.
func get(host, path, etag string) func() *http.Request {
	return func() *http.Request {
		req, err := http.NewRequest(http.MethodGet, "https://"+host+path, nil)
		if err != nil {
			panic(err) // both are constants of this program
		}
		req.Header.Set("User-Agent", "canonical-livepatch/bench")
		if etag != "" {
			req.Header.Set("If-None-Match", etag)
		}
		return req
	}
}
