// Package docs holds the documents that programs serve.
package docs

import _ "embed"

// OpenAPI is the description of the HTTP API, served at /v1/openapi.yaml.
//
//go:embed openapi.yaml
var OpenAPI []byte
