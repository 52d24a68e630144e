package api_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/api"
	"livepatch/server/internal/servicetest"
)

// FuzzRequestLines sends any path, query and headers to every route that takes
// no body. The answer is one of the contract, and never the service's fault.
func FuzzRequestLines(f *testing.F) {
	s := servicetest.New(f)
	r := tuftest.New(time.Now())
	servicetest.AddPatch(r, 53, 1)
	s.Publish(f, r)
	handler := api.New(s.API()).Handler()
	f.Add("timestamp.json", "", "Bearer x", "gzip", `"0"`, "bytes=0-")
	f.Add("1.root.json", "version=6.1.0-53-amd64&flavour=amd64&architecture=x86_64", "Basic Og==", "gzip;q=0,*;q=1", "W/*", "Sun, 22 Nov 2026 03:00:00 GMT")
	f.Add("99999999999999999999.root.json", "version=%00&flavour=..&architecture=/", "", "br;q=x", "*", "bytes=-1,0-0,99999999999999999999-")
	f.Add("../../etc/passwd", "a=%zz;b", "bearer\t", "\xff", "\"", "bytes=18446744073709551615-")
	f.Fuzz(func(t *testing.T, file, query, authorization, encoding, validator, span string) {
		for _, path := range []string{
			service.PathMetadata + url.PathEscape(file), service.PathTargets + "debian/" + url.PathEscape(file),
			service.PathSupported, service.PathPublishState,
		} {
			req := &http.Request{
				Method: http.MethodGet, URL: &url.URL{Path: path, RawQuery: query}, Host: "livepatch.test",
				RemoteAddr: "127.0.0.1:1", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody,
				Header: http.Header{
					"Authorization": {authorization}, "Accept-Encoding": {encoding}, "If-None-Match": {validator},
					"If-Modified-Since": {span}, "Range": {span}, "If-Range": {validator},
				},
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, req.WithContext(t.Context()))
			if w.Code >= 500 || w.Code < 200 {
				t.Errorf("%s?%s answered %d %s", path, query, w.Code, w.Body)
			}
		}
	})
}
