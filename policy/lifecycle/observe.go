package lifecycle

import (
	"context"
	"time"

	"github.com/bindgate/bindgate/policy/driver"
)

// observed is a driver whose calls are reported.
type observed struct {
	driver.Driver
	name   string
	report func(what, call string, took time.Duration, err error)
}

func (o observed) timed(call string, began time.Time, err error) {
	o.report(o.name, call, time.Since(began), err)
}

func (o observed) Create(ctx context.Context, name string, opts map[string]string) (err error) {
	defer func(began time.Time) { o.timed("create", began, err) }(time.Now())
	return o.Driver.Create(ctx, name, opts)
}

func (o observed) Get(ctx context.Context, name string) (v driver.Volume, err error) {
	defer func(began time.Time) { o.timed("get", began, err) }(time.Now())
	return o.Driver.Get(ctx, name)
}

func (o observed) Path(ctx context.Context, name string) (path string, err error) {
	defer func(began time.Time) { o.timed("path", began, err) }(time.Now())
	return o.Driver.Path(ctx, name)
}

func (o observed) Mount(ctx context.Context, name, id string) (mountpoint string, err error) {
	defer func(began time.Time) { o.timed("mount", began, err) }(time.Now())
	return o.Driver.Mount(ctx, name, id)
}

func (o observed) Unmount(ctx context.Context, name, id string) (err error) {
	defer func(began time.Time) { o.timed("unmount", began, err) }(time.Now())
	return o.Driver.Unmount(ctx, name, id)
}
