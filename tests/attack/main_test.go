// Package attack shows, one test for each row of the threat table and some beyond it, that an attack which works against the naive way fails against
// the installed helper.
package attack

import (
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
