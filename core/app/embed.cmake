# cmake -DFROM=file -DTO=file.c -DNAME=ks_x -P embed.cmake: the file's bytes as NAME_text and NAME_bytes.
file(READ ${FROM} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "((0x..,){24})" "\\1\n" bytes "${bytes}")
file(WRITE ${TO} "#include <stddef.h>
extern const unsigned char ${NAME}_text[];
extern const size_t ${NAME}_bytes;
const unsigned char ${NAME}_text[] = {\n${bytes}\n};
const size_t ${NAME}_bytes = sizeof ${NAME}_text;
")
