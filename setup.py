"""Maps the four folders at the repository's root to the namespace package `styleinv`.

    training/ -> styleinv.training      runtime/ -> styleinv.runtime
    export/   -> styleinv.export        kernels/ -> styleinv.kernels

There is no `styleinv/` folder: `styleinv` is a PEP 420 namespace, so nothing else becomes importable.
"""

from setuptools import find_packages, setup

ROOTS = ("training", "export", "runtime", "kernels")

packages = [f"styleinv.{root}" for root in ROOTS]
packages += [f"styleinv.{root}.{package}" for root in ROOTS for package in find_packages(root)]
packages += ["styleinv.kernels.tuning"]  # data alone

setup(
    packages=packages,
    package_dir={f"styleinv.{root}": root for root in ROOTS},
    package_data={package: ["py.typed", "*.json", "*.csv"] for package in packages},
)
