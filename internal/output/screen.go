package output

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Screen keeps a terminal showing the newest text, and only it.
type Screen struct {
	W       io.Writer
	Colours Colours
	Height  func() int // of the terminal, in lines; 0 if that is not known
}

// ScreenOf is the screen of a terminal.
func ScreenOf(w io.Writer) Screen {
	height := func() int {
		f, ok := w.(*os.File)
		if !ok {
			return 0
		}
		size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return 0
		}
		return int(size.Row)
	}
	return Screen{W: w, Colours: ColoursFor(w), Height: height}
}

// The terminal is cleared as a whole the first time, and after that from the top
// down as it is written over, so that nothing flickers. A line that is too long
// is cut off meanwhile, or the count of lines would be wrong (ECMA-48: CUP, ED, EL;
// DECAWM).
const (
	noWrap    = "\x1b[?7l"
	wrap      = "\x1b[?7h"
	clearAll  = "\x1b[2J"
	home      = "\x1b[H"
	clearLine = "\x1b[K"
	clearRest = "\x1b[J"
)

// Draw shows a text with a line below it. What does not fit is left out, and
// that is said.
func (s Screen) Draw(text, foot string, first bool) error {
	var b bytes.Buffer
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	// Two lines are for the foot, and one for the cursor.
	if most := s.Height() - 3; most > 0 && len(lines) > most {
		lines = append(lines[:most-1], fmt.Sprintf("  … %d more lines: the terminal is too small", len(lines)-most+1))
	}
	if first {
		b.WriteString(clearAll)
	}
	b.WriteString(noWrap + home)
	for _, line := range append(lines, "", s.Colours.Bold(foot)) {
		b.WriteString(line + clearLine + "\n")
	}
	b.WriteString(clearRest + wrap)
	_, err := s.W.Write(b.Bytes())
	return err
}
