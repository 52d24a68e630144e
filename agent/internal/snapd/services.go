package snapd

import (
	"context"
	"fmt"
	"strings"
)

// A Service is a service of the snap.
type Service struct {
	Name    string // without that of the snap: "loader"
	Enabled bool   // starts by itself
	Active  bool   // runs now
	Socket  bool   // is started by a connection
}

// Services returns the services of the snap.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	out, err := c.run(ctx, usual, "services")
	if err != nil {
		return nil, fmt.Errorf("cannot ask for the services: %w", err)
	}
	return parseServices(out)
}

// parseServices reads the table of "snapctl services": a line of headings, then
// name, startup, current state and notes of a service each.
func parseServices(table string) ([]Service, error) {
	var services []Service
	first := true
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if first || len(fields) == 0 {
			first = false
			continue
		}
		_, name, ok := strings.Cut(fields[0], ".")
		if !ok || len(fields) < 3 {
			return nil, fmt.Errorf("cannot ask for the services: snapd answers with a line %q", oneLine(line))
		}
		notes := ""
		if len(fields) > 3 {
			notes = fields[3]
		}
		services = append(services, Service{
			Name: name, Enabled: fields[1] == "enabled", Active: fields[2] == "active", Socket: strings.Contains(notes, "socket-activated"),
		})
	}
	return services, nil
}
