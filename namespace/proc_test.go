package namespace

import (
	"bytes"
	"encoding/binary"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzMappedRoot: whatever uid_map says, the container's root is the second number of a line whose first is 0, or there is none.
func FuzzMappedRoot(f *testing.F) {
	for _, s := range []string{"", "         0     200000      65536\n", "1000 0 1\n0 1000 1\n", "0 -1 1\n", "0 4294967296 1", "00 5 1\n", "0 7\n", "\n0\t3\t1", "0 99999999999999999999 1\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, id := procfs(t, map[string]string{"uid_map": string(data)}), -1
		err := Try(func() { id = (&Target{PID: 7, dir: "7/"}).mappedRoot(h, "uid_map") })
		said := false
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			said = said || len(fields) == 3 && fields[0] == "0" && fields[1] != "" && strings.TrimLeft(fields[1], "0") == strings.TrimLeft(strconv.Itoa(id), "0")
		}
		if err == nil && (!said || id < 0 || id > 1<<32-1) || err != nil && id != -1 {
			t.Errorf("%q: %d, %v", data, id, err)
		}
	})
}

// FuzzStartTime: a start time is field 22 of stat, counted from the last parenthesis, or "-": it cannot be told.
func FuzzStartTime(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	for _, s := range []string{"", ")", "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 20", "7 (x) S", "7 (\n) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 -1 20"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ticks := procfs(t, map[string]string{"stat": string(data)}).startTime("7/")
		fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
		if len(fields) < 20 && ticks != "-" || len(fields) >= 20 && ticks != string(fields[19]) {
			t.Errorf("%q: %q", data, ticks)
		}
	})
}

// FuzzStatMount: whatever the kernel's answer says of its strings, they are read within it, and end at its first NUL.
func FuzzStatMount(f *testing.F) {
	good := make([]byte, len(scratch))
	binary.NativeEndian.PutUint64(good[8:], statmountWanted)
	binary.NativeEndian.PutUint32(good[108:], 6)
	copy(good[statmountHeader:], "tmpfs\x00/data\x00")
	f.Add(good[:statmountHeader+16])
	for _, at := range []int{36, 108} {
		bad := bytes.Clone(good)
		binary.NativeEndian.PutUint32(bad[at:], 1<<32-1)
		f.Add(bad[:statmountHeader+16])
		binary.NativeEndian.PutUint32(bad[at:], unix.PathMax)
		f.Add(bad[:statmountHeader])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		buf := make([]byte, len(scratch))
		copy(buf, data)
		m := parseMount(buf)
		for _, s := range []string{m.Type, m.Point} {
			if len(s) > unix.PathMax || strings.Contains(s, "\x00") || s != "" && !bytes.Contains(buf[statmountHeader:], []byte(s)) {
				t.Errorf("%q", s)
			}
		}
	})
}
