"""Agent images: packed, stored in an OCI image layout, unpacked."""
