"""The Docker Engine: builds, pushes, images and what they leave behind. The only floor that knows aiodocker."""
