//go:build attack

package attack

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// openings are Applies whose opening is wrong in one field.
func (l *target) openings() map[string]struct {
	edit func(o *loaderv1.Opening)
	want error
} {
	target := func(name string) func(*loaderv1.Opening) { return func(o *loaderv1.Opening) { o.Target = name } }
	wait := func(seconds int64, nanos int32) func(*loaderv1.Opening) {
		return func(o *loaderv1.Opening) { o.Wait = &durationpb.Duration{Seconds: seconds, Nanos: nanos} }
	}
	roots := func(n int, b []byte) func(*loaderv1.Opening) {
		return func(o *loaderv1.Opening) { o.Metadata.Roots = slices.Repeat([][]byte{b}, n) }
	}
	big := func(field func(o *loaderv1.Opening) *[]byte, size int) func(*loaderv1.Opening) {
		return func(o *loaderv1.Opening) { *field(o) = make([]byte, size) }
	}
	return map[string]struct {
		edit func(o *loaderv1.Opening)
		want error
	}{
		"target that leaves its folder":         {target("debian/../../etc/shadow"), patch.ErrInvalid},
		"target that is an absolute path":       {target("/etc/shadow"), patch.ErrInvalid},
		"target with a NUL":                     {target("debian/lkp\x00.ko"), nil},
		"target with a line break":              {target("debian/lkp\nlevel=ERROR msg=forged"), nil},
		"target of 1 MiB":                       {target("debian/" + strings.Repeat("x", 1<<20)), nil},
		"vendor of 1 MiB":                       {target(strings.Repeat("x", 1<<20) + "/lkp.ko"), patch.ErrInvalid},
		"empty target":                          {target(""), patch.ErrInvalid},
		"target that is a rollout":              {target("rollout/debian/1.1"), nil},
		"target that is an index":               {target(patch.IndexPath(lab.Vendor, lab.Release, "x86_64")), nil},
		"wait of minus one nanosecond":          {wait(0, -1), patch.ErrInvalid},
		"wait of the smallest number":           {wait(math.MinInt64, math.MinInt32), patch.ErrInvalid},
		"wait of the largest number":            {wait(math.MaxInt64, math.MaxInt32), patch.ErrInvalid},
		"wait whose parts have different signs": {wait(-1, 999999999), patch.ErrInvalid},
		"wait of ten minutes and a nanosecond":  {wait(600, 1), patch.ErrInvalid},
		"65 roots":                              {roots(65, l.repo.Pinned()), nil},
		"a million empty roots":                 {roots(1e6, nil), nil},
		"root of 512 KiB and a byte":            {roots(1, make([]byte, patch.MaxRoot+1)), patch.ErrTooLarge},
		"the same root again":                   {roots(1, l.repo.Pinned()), patch.ErrRollback},
		"timestamp of 16 KiB and a byte":        {big(func(o *loaderv1.Opening) *[]byte { return &o.Metadata.Timestamp }, patch.MaxTimestamp+1), patch.ErrTooLarge},
		"snapshot of 2 MiB and a byte":          {big(func(o *loaderv1.Opening) *[]byte { return &o.Metadata.Snapshot }, patch.MaxSnapshot+1), nil},
		"targets of 5 MiB and a byte":           {big(func(o *loaderv1.Opening) *[]byte { return &o.Metadata.Targets }, patch.MaxRole+1), patch.ErrTooLarge},
		"rollout of 5 MiB and a byte":           {big(func(o *loaderv1.Opening) *[]byte { return &o.Metadata.Rollout }, patch.MaxRole+1), patch.ErrTooLarge},
		"vendor role of 5 MiB and a byte":       {big(func(o *loaderv1.Opening) *[]byte { return &o.Vendor }, patch.MaxRole+1), patch.ErrTooLarge},
		"bin of 5 MiB and a byte":               {big(func(o *loaderv1.Opening) *[]byte { return &o.Bin }, patch.MaxRole+1), patch.ErrTooLarge},
		"no metadata":                           {func(o *loaderv1.Opening) { o.Metadata = nil }, nil},
		"JSON that is a million brackets deep":  {func(o *loaderv1.Opening) { o.Bin = []byte(strings.Repeat("[", 1e6)) }, patch.ErrMalformed},
		"roles in each other's place": {func(o *loaderv1.Opening) {
			o.Metadata.Targets, o.Metadata.Rollout = o.GetMetadata().GetRollout(), o.GetMetadata().GetTargets()
		}, nil},
	}
}

func TestHostileAgentFields(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	for name, tc := range l.openings() {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Agent, "Apply: "+name)
			o := l.repo.Opening(l.one)
			tc.edit(o)
			logged := len(l.Loader.Log.String())
			_, err := lab.Apply(t, l.c, o, l.one.Content)
			l.refused(t, a, err, tc.want)
			if got := len(l.Loader.Log.String()) - logged; got > 16<<10 {
				t.Errorf("the loader logged %d KiB", got>>10)
			}
			if got := l.Loader.Log.String()[logged:]; strings.Contains(got, "\nlevel=ERROR") {
				t.Errorf("the agent wrote a line of its own into the loader's log:\n%s", got)
			}
			l.survives(t)
		})
	}
}

// Names are all that Remove and Accept take.
func TestHostileAgentNames(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	l.Kernel.Write("sys/module/lkp_of_somebody_else/refcnt", "1\n")
	l.Kernel.Write("sys/kernel/livepatch/lkp_of_somebody_else/enabled", "1\n")
	l.Kernel.Write("sys/kernel/livepatch/lkp_of_somebody_else/transition", "0\n")
	calls := l.Kernel.Calls()
	names := map[string]string{
		"no name":                            "",
		"a name that leaves its folder":      "../../../../proc/sysrq-trigger",
		"a name with a NUL":                  "lkp\x00",
		"a name of 1 MiB":                    strings.Repeat("x", 1<<20),
		"a pattern":                          "*",
		"a livepatch that nobody knows":      "lkp_nobody",
		"an ordinary module":                 "ext4",
		"a livepatch that somebody inserted": "lkp_of_somebody_else",
	}
	for what, name := range names {
		for verb, call := range map[string]func(context.Context) error{
			"Remove": func(ctx context.Context) error {
				_, err := l.c.Remove(ctx, &loaderv1.RemoveRequest{Name: name})
				return err
			},
			"Accept": func(ctx context.Context) error {
				_, err := l.c.Accept(ctx, &loaderv1.AcceptRequest{Name: name})
				return err
			},
		} {
			t.Run(verb+" "+what, func(t *testing.T) {
				a := report.Begin(t, report.Agent, verb+" of "+what)
				logged := len(l.Loader.Log.String())
				l.refused(t, a, call(t.Context()), patch.ErrNotOurs)
				if got := len(l.Loader.Log.String()) - logged; got > 16<<10 {
					t.Errorf("the loader logged %d KiB", got>>10)
				}
			})
		}
	}
	if got := l.Kernel.Calls(); got != calls {
		t.Errorf("%d calls reached the kernel", got-calls)
	}
	if got := l.Kernel.Livepatches(); !slices.Contains(got, "lkp_of_somebody_else") {
		t.Errorf("livepatches = %q", got)
	}
}

// A raw message goes over gRPC as it is.
type raw []byte

// rawCodec implements gRPC's encoding.Codec for [raw] messages. It calls itself
// proto, as the loader expects.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	if m, ok := v.(proto.Message); ok {
		return proto.Marshal(m)
	}
	return v.(raw), nil
}

func (rawCodec) Unmarshal(b []byte, v any) error {
	if m, ok := v.(proto.Message); ok {
		return proto.Unmarshal(b, m)
	}
	return nil
}

// apply sends raw messages as an Apply and returns how it ended.
func (l *target) apply(t *testing.T, method string, opts []grpc.CallOption, messages ...raw) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	opts = append(opts, grpc.ForceCodec(rawCodec{}))
	stream, err := l.conn(t).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, opts...)
	lab.Must(t, err)
	for _, m := range messages {
		if stream.SendMsg(m) != nil {
			break // the answer has come
		}
	}
	_ = stream.CloseSend()
	return ends(stream)
}

const (
	applyMethod  = "/loader.v1.LoaderService/Apply"
	statusMethod = "/loader.v1.LoaderService/Status"
)

func marshal(t *testing.T, m proto.Message) raw {
	t.Helper()
	b, err := proto.Marshal(m)
	lab.Must(t, err)
	return b
}

// field is a field of type bytes of a protobuf message.
func field(n protowire.Number, b []byte) raw {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
}

func TestHostileAgentMessages(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	opening := marshal(t, &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: l.repo.Opening(l.one)}})
	piece := func(n int) raw {
		return marshal(t, &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: make([]byte, n)}})
	}
	deep := raw{}
	for range 10000 {
		deep = protowire.AppendTag(deep, 3, protowire.StartGroupType)
	}
	gzipped := []grpc.CallOption{grpc.UseCompressor(gzip.Name)}
	tests := map[string]struct {
		method   string
		opts     []grpc.CallOption
		messages []raw
		want     error
	}{
		"module before the opening":                                   {messages: []raw{piece(100), opening}, want: patch.ErrInvalid},
		"two openings":                                                {messages: []raw{opening, opening}, want: patch.ErrInvalid},
		"opening after the module":                                    {messages: []raw{opening, piece(100), opening}, want: patch.ErrInvalid},
		"stream with nothing in it":                                   {want: patch.ErrInvalid},
		"message with nothing in it":                                  {messages: []raw{{}}, want: patch.ErrInvalid},
		"empty piece of the module":                                   {messages: []raw{opening, piece(0)}, want: patch.ErrInvalid},
		"module shorter than signed":                                  {messages: []raw{opening, piece(100)}, want: patch.ErrTampered},
		"other bytes of the signed length":                            {messages: []raw{opening, piece(len(l.one.Content))}, want: patch.ErrTampered},
		"message of 8 MiB and a byte":                                 {messages: []raw{opening, make(raw, 8<<20+1)}},
		"bytes that are no message":                                   {messages: []raw{{0xff, 0xff, 0xff, 0xff}}},
		"field number 0":                                              {messages: []raw{{0x02, 0x00}}},
		"field of the wrong type":                                     {messages: []raw{protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7)}},
		"length that runs past the message":                           {messages: []raw{append(protowire.AppendTag(nil, 1, protowire.BytesType), 0xff, 0xff, 0xff, 0x7f)}},
		"number of eleven bytes":                                      {messages: []raw{{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}}},
		"groups ten thousand deep":                                    {messages: []raw{deep}},
		"target that is not UTF-8":                                    {messages: []raw{field(1, field(1, []byte("debian/\xff\xfe")))}},
		"fields that nobody knows, in place of those that are needed": {messages: []raw{field(1, field(1000, make([]byte, 1<<20)))}, want: patch.ErrInvalid},
		"opening and module in one message":                           {messages: []raw{append(slices.Clone(opening), piece(10)...)}, want: patch.ErrInvalid},
		"call that does not exist":                                    {method: "/loader.v1.LoaderService/Insert", messages: []raw{opening}},
		"service that does not exist":                                 {method: "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", messages: []raw{{}}},
		"health service":                                              {method: "/grpc.health.v1.Health/Check", messages: []raw{{}}},
		"name of a call that is a path":                               {method: "/loader.v1.LoaderService/../LoaderService/Apply", messages: []raw{opening}},
		"name of a call of 3 KiB":                                     {method: "/" + strings.Repeat("x", 3<<10) + "/y", messages: []raw{opening}},
		"two requests in a call that takes one":                       {method: "/loader.v1.LoaderService/Remove", messages: []raw{field(1, []byte("lkp_a")), field(1, []byte("lkp_b"))}},
		"compressed message, 1 KiB that unfolds to 8 MiB":             {opts: gzipped, messages: []raw{opening, make(raw, 8<<20-1)}},
		"update without metadata":                                     {method: "/loader.v1.LoaderService/Update", messages: []raw{{}}},
		"update with a million roots":                                 {method: "/loader.v1.LoaderService/Update", messages: []raw{marshal(t, &loaderv1.UpdateRequest{Metadata: &loaderv1.Metadata{Roots: make([][]byte, 1e6)}})}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Agent, name)
			if tc.method == "" {
				tc.method = applyMethod
			}
			err := l.apply(t, tc.method, tc.opts, tc.messages...)
			l.refused(t, a, err, tc.want)
			l.survives(t)
		})
	}
}
