# Install rules: the program and the plugins have theirs beside their targets (core/app, ks_add_plugin); here are the SDK
# for plugin authors, manuals and examples. Everything is found relative to the prefix, so the tree may be moved.
include(CMakePackageConfigHelpers)

set(KS_PLUGIN_DIR lib/krasis/plugins)
set(dir ${CMAKE_BINARY_DIR}/cmake)
install(DIRECTORY include/krasis DESTINATION include)
install(TARGETS krasis-sdk EXPORT krasis ARCHIVE DESTINATION lib)
if(TARGET krasis-conform)
    set_target_properties(krasis-conform PROPERTIES EXPORT_NAME conform)
    install(TARGETS krasis-conform EXPORT krasis RUNTIME DESTINATION bin)
endif()
install(EXPORT krasis NAMESPACE krasis:: FILE krasisTargets.cmake DESTINATION lib/cmake/krasis)
configure_package_config_file(cmake/krasisConfig.cmake.in ${dir}/krasisConfig.cmake
    INSTALL_DESTINATION lib/cmake/krasis PATH_VARS KS_PLUGIN_DIR)
# 0.x: every minor version may differ. The ABI of plugins has a version of its own (krasis/version.h).
write_basic_package_version_file(${dir}/krasisConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${dir}/krasisConfig.cmake ${dir}/krasisConfigVersion.cmake cmake/KsPlugin.cmake cmake/krasis-plugin.map
    DESTINATION lib/cmake/krasis)
configure_file(cmake/krasis-plugin.pc.in ${dir}/krasis-plugin.pc @ONLY)
install(FILES ${dir}/krasis-plugin.pc DESTINATION lib/pkgconfig)

install(FILES docs/krasis.1 DESTINATION share/man/man1)
install(FILES docs/krasis.ini.5 DESTINATION share/man/man5)
# As in the tree, so that the links between them hold.
install(FILES README.md CHANGELOG.md LICENSE ABI-CHANGES.md ARCHITECTURE.md CONTRIBUTING.md SECURITY.md
    DESTINATION share/doc/krasis)
install(DIRECTORY docs conf DESTINATION share/doc/krasis PATTERN "krasis.1" EXCLUDE PATTERN "krasis.ini.5" EXCLUDE)
install(DIRECTORY plugins/template DESTINATION share/doc/krasis)
