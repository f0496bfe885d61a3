package dump

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kata-qat/kata-qat/internal/output"
)

const (
	// narrow is the least that a column is worth having with.
	narrow = 60
	// between is what stands between two columns.
	between = " │ "
)

// columns is how many differences of a pod have room beside each other.
func columns(ds []Difference, width int) int {
	injected := 0
	for i := range ds {
		if ds[i].Against != "" {
			injected++
		}
	}
	gap := utf8.RuneCountInString(between)
	return min(injected, (width+gap)/(narrow+gap))
}

// writeBeside writes the differences of a pod beside each other, n at a time: the
// sandbox first, as it is sorted, and what was done at the same place of the specs
// at the same height.
func writeBeside(w io.Writer, ds []Difference, n int, colours output.Colours, width int) {
	gap := utf8.RuneCountInString(between)
	column := (width - gap*(n-1)) / n
	var blocks []block
	for i := range ds {
		if ds[i].Against != "" {
			blocks = append(blocks, ds[i].block(column-2)) // the op and a space
		}
	}
	for i, band := 0, slices.Collect(slices.Chunk(blocks, n)); i < len(band); i++ {
		if i > 0 {
			fmt.Fprintln(w)
		}
		writeBand(w, band[i], column, colours)
	}
	for i := range ds {
		if ds[i].Against == "" {
			fmt.Fprintf(w, "%s: nothing injected\n", output.Text(ds[i].Container.String()))
		}
	}
}

func writeBand(w io.Writer, band []block, column int, colours output.Colours) {
	heads := make([][]row, len(band))
	var places []string
	for i, b := range band {
		heads[i] = b.head
		for _, s := range b.sections {
			if !slices.Contains(places, s.path) {
				places = append(places, s.path)
			}
		}
	}
	writeRows(w, heads, column, colours)
	slices.Sort(places) // as the sections of each are
	for _, place := range places {
		cells := make([][]row, len(band))
		for i, b := range band {
			if n := slices.IndexFunc(b.sections, func(s section) bool { return s.path == place }); n >= 0 {
				cells[i] = b.sections[n].rows
			}
		}
		writeRows(w, cells, column, colours)
	}
}

// writeRows writes cells of several rows beside each other.
func writeRows(w io.Writer, cells [][]row, column int, colours output.Colours) {
	height := 0
	for i := range cells {
		cells[i] = wrap(cells[i], column)
		height = max(height, len(cells[i]))
	}
	for y := range height {
		for x, rows := range cells {
			var r row
			if y < len(rows) {
				r = rows[y]
			}
			if x < len(cells)-1 {
				r.write(w, colours, column)
				io.WriteString(w, between)
			} else {
				r.write(w, colours, 0)
			}
		}
	}
}

// wrap breaks rows that are too long, wherever that is: nothing of what was
// injected is left out.
func wrap(rows []row, column int) (all []row) {
	const indent = "    "
	for _, r := range rows {
		text := []rune(r.text)
		for len(text) > column {
			all = append(all, row{string(text[:column]), r.paint})
			text = append([]rune(indent), text[column:]...)
		}
		all = append(all, row{strings.TrimRight(string(text), " "), r.paint})
	}
	return all
}
