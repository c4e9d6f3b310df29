# Install rules: the program, the plugins (in ks_add_plugin), the SDK for plugin authors.
include(GNUInstallDirs)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/include/krasis DESTINATION include)
