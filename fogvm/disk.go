package fogvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// makeDisk creates a sparse ext4 image of exactly size bytes, unless path is
// already there. It appears under its name only when complete and synced.
func makeDisk(ctx context.Context, path string, size uint64) error {
	info, err := os.Stat(path)
	if err == nil {
		if uint64(info.Size()) != size {
			return fmt.Errorf("disk has %d bytes, %d are wanted: the size of a disk cannot change within an incarnation", info.Size(), size)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make disk: %w", err)
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	err = f.Truncate(int64(size))
	if err == nil {
		err = mkfs(ctx, tmp)
	}
	// A crash of the machine must not leave the name on an image of zeros, which
	// would count as made.
	if err == nil {
		err = syncFile(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make disk: %w", err), os.Remove(tmp))
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return nil
}

func mkfs(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "mkfs.ext4", mkfsArgs(path)...)
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1", "MKE2FS_CONFIG=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mkfsArgs: everything named, so that the host's mke2fs.conf and clock do not
// matter. The file is fresh and all zeros, so the inode tables need no writing,
// now or later in the guest. No reserved blocks: the disk is the guest's own.
func mkfsArgs(path string) []string {
	return []string{
		"-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-L", "formation",
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-U", "6f8c1a52-5d0e-4c1b-9d52-0f0a6d61696e",
		"-E", "hash_seed=6f8c1a52-5d0e-4c1b-9d52-0f0a6d61696e,lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0",
		path,
	}
}
