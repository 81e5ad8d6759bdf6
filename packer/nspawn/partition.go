package nspawn

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

const sector = 512

// partition is a part of a disk, in bytes. Number 0 is a disk without a
// partition table, all of which is one file system.
type partition struct {
	number      int
	start, size int64
}

func (p *partition) whole() bool { return p.number == 0 }

func (p *partition) String() string {
	if p.whole() {
		return "the disk, which has no partition table,"
	}
	return fmt.Sprintf("partition %d", p.number)
}

// parsePartitions reads what `sfdisk -J` prints, in the order of the disk.
func parsePartitions(out []byte) ([]*partition, error) {
	var table struct {
		PartitionTable struct {
			SectorSize int64
			Partitions []struct {
				Node        string
				Start, Size int64
			}
		}
	}
	if err := json.Unmarshal(out, &table); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	size := table.PartitionTable.SectorSize
	if size == 0 {
		size = sector
	}
	var parts []*partition
	for _, p := range table.PartitionTable.Partitions {
		// NAME1, or NAMEp1 where NAME ends in a digit.
		digits := path.Base(p.Node)
		number, err := strconv.Atoi(digits[len(strings.TrimRight(digits, "0123456789")):])
		if err != nil {
			return nil, fmt.Errorf("read the partition table: %q is no partition", p.Node)
		}
		parts = append(parts, &partition{number: number, start: p.Start * size, size: p.Size * size})
	}
	if len(parts) == 0 {
		return nil, errors.New("the source image has no partition")
	}
	slices.SortFunc(parts, func(a, b *partition) int { return cmp.Compare(a.start, b.start) })
	return parts, nil
}

// bySize returns the partitions, the largest first.
func bySize(parts []*partition) []*partition {
	return slices.SortedStableFunc(slices.Values(parts), func(a, b *partition) int { return cmp.Compare(b.size, a.size) })
}
