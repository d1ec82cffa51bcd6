"""The Docker Engine: builds, pushes, images and what they leave behind. The only package that knows aiodocker."""
