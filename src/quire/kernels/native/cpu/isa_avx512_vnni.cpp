#define QUIRE_ISA avx512_vnni
#include "native/cpu/kernels_of_isa.h"
