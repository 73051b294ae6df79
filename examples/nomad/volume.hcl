# nomad volume create volume.hcl; see docs/nomad.md
type      = "host"
name      = "db"
plugin_id = "bindgate-nomad"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

# All but driver, name and explicit_create are options for the driver.
parameters {
  driver = "rexray"
  name   = "nomad-db"
  size   = "16"
}
