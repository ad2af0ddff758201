#define QUIRE_ISA avx512_bf16
#include "native/cpu/kernels_of_isa.h"
