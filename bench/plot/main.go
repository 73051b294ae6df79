// plot draws what make bench measured: plot FOLDER reads results.json in FOLDER and writes SVG files beside it. It is a module of its own, so that what draws is no dependency of what is drawn.
package main

import (
	"encoding/json"
	"fmt"
	"image/color"
	"log"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

type point struct{ X, Y, Low, High float64 }

type results struct {
	Machine string
	Costs   []struct {
		Name           string
		Q1, Median, Q3 float64
	}
	Mounts, Records, Batch, Parallel, Recover, RecoverDrivers []point

	BatchBaseline float64
}

var (
	blue = color.RGBA{0x1f, 0x77, 0xb4, 0xff}
	gray = color.RGBA{0x88, 0x88, 0x88, 0xff}
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: plot FOLDER")
	}
	dir := os.Args[1]
	data, err := os.ReadFile(filepath.Join(dir, "results.json"))
	check(err)
	var r results
	check(json.Unmarshal(data, &r))
	costs(dir, r)
	curves(dir, "crowded.svg", "bindgate attach on a crowded host", "mounts, or records, on the host", "milliseconds", 1000, curve{"mounts", r.Mounts, blue}, curve{"records", r.Records, gray})
	curves(dir, "batch.svg", "bindgate-helper: mounts in one request", "mounts in the request", "microseconds a mount", 1, curve{"bindgate-helper", r.Batch, blue}, curve{"nsenter ... mount --bind", level(r.Batch, r.BatchBaseline), gray})
	curves(dir, "parallel.svg", "64 attaches, to 64 containers, 8 volumes", "at once", "a second", 1, curve{"bindgate attach", r.Parallel, blue})
	curves(dir, "recover.svg", "bindgate recover, two volumes each", "dead containers", "milliseconds", 1, curve{"recover", r.Recover, blue}, curve{"the driver's calls alone", r.RecoverDrivers, gray})
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// level is a baseline, as wide as a curve.
func level(like []point, y float64) []point {
	if len(like) == 0 {
		return nil
	}
	return []point{{like[0].X, y, y, y}, {like[len(like)-1].X, y, y, y}}
}

func save(p *plot.Plot, dir, file string, height vg.Length) {
	check(p.Save(16*vg.Centimeter, height, filepath.Join(dir, file)))
	fmt.Println(filepath.Join(dir, file))
}

// costs draws what each command took: a bar to the median, a line between the quartiles.
func costs(dir string, r results) {
	p := plot.New()
	p.Title.Text = "one attach, and its baselines"
	p.X.Label.Text = "milliseconds (median, quartiles)"
	var names []string
	for i := range r.Costs {
		c := r.Costs[len(r.Costs)-1-i]
		names = append(names, c.Name)
		bar, err := plotter.NewBarChart(plotter.Values{c.Median / 1000}, vg.Points(9))
		check(err)
		bar.Horizontal, bar.XMin, bar.Color, bar.LineStyle.Width = true, float64(i), blue, 0
		spread, err := plotter.NewLine(plotter.XYs{{X: c.Q1 / 1000, Y: float64(i)}, {X: c.Q3 / 1000, Y: float64(i)}})
		check(err)
		p.Add(bar, spread)
	}
	p.NominalY(names...)
	p.X.Min = 0
	save(p, dir, "costs.svg", vg.Length(3+len(r.Costs))*0.8*vg.Centimeter)
}

type curve struct {
	name   string
	points []point
	color  color.Color
}

func (c curve) Len() int                { return len(c.points) }
func (c curve) XY(i int) (x, y float64) { return c.points[i].X, c.points[i].Y }
func (c curve) YError(i int) (low, high float64) {
	return c.points[i].Y - c.points[i].Low, c.points[i].High - c.points[i].Y
}

// curves draws medians, with the quartiles at each.
func curves(dir, file, title, x, y string, unit float64, list ...curve) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Legend.Top, p.Legend.Left = true, true
	drawn := false
	for _, c := range list {
		if len(c.points) == 0 {
			continue
		}
		drawn = true
		for i := range c.points {
			c.points[i].Y, c.points[i].Low, c.points[i].High = c.points[i].Y/unit, c.points[i].Low/unit, c.points[i].High/unit
		}
		line, dots, err := plotter.NewLinePoints(c)
		check(err)
		bars, err := plotter.NewYErrorBars(c)
		check(err)
		line.Color, dots.Color, bars.Color = c.color, c.color, c.color
		p.Add(line, dots, bars)
		p.Legend.Add(c.name, line, dots)
	}
	p.Y.Min = 0
	if drawn {
		save(p, dir, file, 9*vg.Centimeter)
	}
}
