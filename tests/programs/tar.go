// Go's archive/tar, for tests to compare with: each line of standard input is a JSON array of requests, each line of
// standard output the answers. Bytes are hexadecimal.
//
//	tar write   entries  -> the bytes that a tar.Writer makes of them, in the PAX form or in none in particular
//	tar read    archive  -> the entries that a tar.Reader finds in it, with their content
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"
)

const xattr = "SCHILY.xattr."

type attribute [2]string

type entry struct {
	Flag    byte        `json:"flag"`
	Path    string      `json:"path"`
	Link    string      `json:"link"`
	Mode    int64       `json:"mode"`
	Uid     int64       `json:"uid"`
	Gid     int64       `json:"gid"`
	Size    int64       `json:"size"`
	Secs    int64       `json:"secs"`
	Nanos   int64       `json:"nanos"`
	Major   int64       `json:"major"`
	Minor   int64       `json:"minor"`
	Xattrs  []attribute `json:"xattrs"`
	Content string      `json:"content"`
}

type request struct {
	AnyForm bool    `json:"any_form"`
	Close   bool    `json:"close"`
	Entries []entry `json:"entries"`
	Archive string  `json:"archive"`
}

type answer struct {
	Archive string   `json:"archive"`
	Entries []entry  `json:"entries"`
	Errors  []string `json:"errors"`
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "tar.go:", err)
		os.Exit(2)
	}
}

func unhex(text string) string {
	raw, err := hex.DecodeString(text)
	must(err)
	return string(raw)
}

func tohex(text string) string { return hex.EncodeToString([]byte(text)) }

func write(asked request) (done answer) {
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, e := range asked.Entries {
		header := &tar.Header{
			Typeflag: e.Flag, Name: unhex(e.Path), Linkname: unhex(e.Link), Mode: e.Mode,
			Uid: int(e.Uid), Gid: int(e.Gid), Size: e.Size, ModTime: time.Unix(e.Secs, e.Nanos),
			Devmajor: e.Major, Devminor: e.Minor, Format: tar.FormatPAX,
		}
		if asked.AnyForm {
			header.Format = tar.FormatUnknown
		}
		for _, a := range e.Xattrs {
			if header.PAXRecords == nil {
				header.PAXRecords = map[string]string{}
			}
			header.PAXRecords[xattr+unhex(a[0])] = unhex(a[1])
		}
		if err := writer.WriteHeader(header); err != nil {
			done.Errors = append(done.Errors, err.Error())
			continue
		}
		if _, err := io.WriteString(writer, unhex(e.Content)); err != nil {
			done.Errors = append(done.Errors, err.Error())
		}
	}
	if asked.Close {
		must(writer.Close())
	}
	done.Archive = hex.EncodeToString(out.Bytes())
	return done
}

// The most of a file that is looked at: holes can be as long as they like.
const most = 1 << 16

func read(asked request) (done answer) {
	reader := tar.NewReader(strings.NewReader(unhex(asked.Archive)))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return done
		}
		if err != nil {
			done.Errors = append(done.Errors, err.Error())
			return done
		}
		e := entry{
			Flag: header.Typeflag, Path: tohex(header.Name), Link: tohex(header.Linkname), Mode: header.Mode,
			Uid: int64(header.Uid), Gid: int64(header.Gid), Size: header.Size,
			Secs: header.ModTime.Unix(), Nanos: int64(header.ModTime.Nanosecond()),
			Major: header.Devmajor, Minor: header.Devminor,
		}
		for key, value := range header.PAXRecords {
			if strings.HasPrefix(key, xattr) {
				e.Xattrs = append(e.Xattrs, attribute{tohex(key[len(xattr):]), tohex(value)})
			}
		}
		sort.Slice(e.Xattrs, func(i, j int) bool { return e.Xattrs[i][0] < e.Xattrs[j][0] })
		content, err := io.ReadAll(io.LimitReader(reader, most))
		e.Content = hex.EncodeToString(content)
		done.Entries = append(done.Entries, e)
		if err != nil {
			done.Errors = append(done.Errors, err.Error())
			return done
		}
	}
}

func main() {
	work := map[string]func(request) answer{"write": write, "read": read}[os.Args[1]]
	out := bufio.NewWriter(os.Stdout)
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			break
		}
		if err != io.EOF {
			must(err)
		}
		var asked []request
		must(json.Unmarshal(line, &asked))
		answers := make([]answer, 0, len(asked))
		for _, a := range asked {
			answers = append(answers, work(a))
		}
		must(json.NewEncoder(out).Encode(answers))
	}
	must(out.Flush())
}
