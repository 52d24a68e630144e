package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"strconv"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Colours that are told apart by people who see red and green alike, and on paper.
var colors = [quantities]color.RGBA{
	exposed: {R: 0x00, G: 0x72, B: 0xb2, A: 0xff},
	matured: {R: 0x00, G: 0x9e, B: 0x73, A: 0xff},
	failed:  {R: 0xd5, G: 0x5e, B: 0x00, A: 0xff},
}

// Size of a plot, in points.
const (
	plotWidth  = 640
	plotHeight = 300
)

// figure draws what happened in a scenario over time, as SVG. What the lines mean, the
// page says once for all of them.
func figure(r result) ([]byte, error) {
	p := plot.New()
	end := r.shown()
	p.X.Label.Text, p.Y.Label.Text = "hours", "machines"
	p.X.Min, p.X.Max, p.X.Tick.Marker = 0, end.Hours(), hours{}
	p.Y.Min, p.Y.Max, p.Y.Tick.Marker, p.Y.Scale = 0.8, 2*float64(r.ours.machines), decades{}, plot.LogScale{}
	p.Add(plotter.NewGrid())
	for q := range quantities {
		style := draw.LineStyle{Color: colors[q], Width: vg.Points(1.2), Dashes: []vg.Length{vg.Points(4), vg.Points(3)}}
		addLine(p, cumulated(r.base.series[q], end), style)
		addLine(p, cumulated(r.ours.series[q], end), draw.LineStyle{Color: colors[q], Width: vg.Points(1.8)})
	}
	if at := float64(r.ours.halt) / hour; at > 0 {
		addLine(p, plotter.XYs{{X: at, Y: p.Y.Min}, {X: at, Y: p.Y.Max}}, draw.LineStyle{Color: color.Black, Width: vg.Points(1)})
	}
	return svg(p)
}

// addLine draws a line, if there is one.
func addLine(p *plot.Plot, points plotter.XYs, style draw.LineStyle) {
	line, err := plotter.NewLine(points)
	if err != nil {
		return // there is no point
	}
	line.LineStyle, line.StepStyle = style, plotter.PostStep
	p.Add(line)
}

func svg(p *plot.Plot) ([]byte, error) {
	c := vgsvg.NewWith(vgsvg.UseWH(plotWidth, plotHeight))
	p.Draw(draw.New(c))
	var out bytes.Buffer
	if _, err := c.WriteTo(&out); err != nil {
		return nil, fmt.Errorf("cannot draw: %w", err)
	}
	return out.Bytes(), nil
}

// cumulated sums a quantity up, at some hundred points of time. It begins where there
// is one: a logarithm knows no 0.
func cumulated(counts []int32, end time.Duration) (xys plotter.XYs) {
	const points = 300
	minutes := min(len(counts), int(end/time.Minute)+1)
	every, sum := max(1, minutes/points), 0
	for minute, n := range counts[:minutes] {
		sum += int(n)
		if sum > 0 && (n > 0 && sum == int(n) || minute%every == 0 || minute == minutes-1) {
			xys = append(xys, plotter.XY{X: float64(minute) / 60, Y: float64(sum)})
		}
	}
	return xys
}

// decades ticks at the powers of ten.
type decades struct{}

// Ticks implements [plot.Ticker].
func (decades) Ticks(low, high float64) (ticks []plot.Tick) {
	for v := 1.; v <= high; v *= 10 {
		if v >= low {
			ticks = append(ticks, plot.Tick{Value: v, Label: grouped(int(v))})
		}
		for n := 2.; n < 10 && n*v <= high; n++ {
			ticks = append(ticks, plot.Tick{Value: n * v})
		}
	}
	return ticks
}

// hours ticks at whole hours, or quarters of one.
type hours struct{}

// Ticks implements [plot.Ticker].
func (hours) Ticks(low, high float64) (ticks []plot.Tick) {
	const most = 12
	step := 0.25
	for _, s := range []float64{0.5, 1, 2, 3, 6, 12, 24, 48} {
		if (high-low)/step > most {
			step = s
		}
	}
	for v := 0.; v <= high; v += step {
		ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', -1, 64)})
	}
	return ticks
}

// grouped writes a number with a space between its thousands.
func grouped(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// shown is how much of the time a plot shows: until nothing happens any more, and
// an hour.
func (r result) shown() time.Duration {
	last := max(r.ours.last(), r.base.last(), int(r.ours.halt/60))
	limit := time.Duration(len(r.ours.series[exposed])-1) * time.Minute
	return min(limit, time.Duration(math.Ceil(float64(last)/60)+1)*time.Hour)
}

// last is the last minute in which something was counted.
func (s *series) last() (minute int) {
	for q := range s {
		for m, n := range s[q] {
			if n > 0 {
				minute = max(minute, m)
			}
		}
	}
	return minute
}
