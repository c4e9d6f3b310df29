# find_package(krasis) inside this tree: the package is the tree. So plugins/template is built here by the very same
# CMakeLists.txt that works outside.
set(krasis_FOUND TRUE)
