package build

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// aptFails is the exit code of an apt-get that failed.
const aptFails = 100

// findPackages says which packages do not exist. What apt-get does not know as a
// name it takes for a pattern, or for an order to remove something.
func findPackages(r *runRequest, rep *reply) (err error) {
	f, err := os.Create(lendDir + "/packages")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rep.ExitCode, err = runOne([]string{"apt-cache", "pkgnames", "--all-names"}, r.Env, r.Dir, f)
	if rep.ExitCode != 0 || err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if rep.Missing, err = missing(r.Packages, f); err != nil {
		return fmt.Errorf("read the names of packages: %w", err)
	}
	for _, i := range rep.Missing {
		rep.ExitCode = aptFails
		fmt.Fprintln(os.Stderr, "E: Unable to locate package", r.Packages[i])
	}
	return nil
}

// missing gives the indexes of the packages that are not among names, one a line.
func missing(packages []string, names io.Reader) ([]int, error) {
	known := map[string]bool{}
	for _, p := range packages {
		known[packageName(p)] = false
	}
	sc := bufio.NewScanner(names)
	for sc.Scan() {
		if _, ok := known[sc.Text()]; ok {
			known[sc.Text()] = true
		}
	}
	var out []int
	for i, p := range packages {
		if !known[packageName(p)] {
			out = append(out, i)
		}
	}
	return out, sc.Err()
}

// packageName is a word of INSTALL without its architecture, version or release.
func packageName(word string) string {
	if i := strings.IndexAny(word, ":=/"); i >= 0 {
		return word[:i]
	}
	return word
}
