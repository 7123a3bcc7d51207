// The MinIO server, unmodified: a real S3 store for the tests. It is AGPL-3.0 and no part of what we ship.
package main

import (
	"os"

	minio "github.com/minio/minio/cmd"
)

func main() { minio.Main(os.Args) }
