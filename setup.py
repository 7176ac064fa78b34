"""The packages of a wheel, among which the folder configs/ is `jaxseg.configs`."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["jaxseg*"]), "jaxseg.configs"], package_dir={"jaxseg.configs": "configs"})
