"""Files in safetensors with checksums, replaced in one step: what models and features share."""
