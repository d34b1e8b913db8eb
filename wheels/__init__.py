"""What `make wheels` runs: build the wheels of a release, then install and try each."""
