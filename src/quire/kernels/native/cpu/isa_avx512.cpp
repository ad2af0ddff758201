#define QUIRE_ISA avx512
#include "native/cpu/kernels_of_isa.h"
