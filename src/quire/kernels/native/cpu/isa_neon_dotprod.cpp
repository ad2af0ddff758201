#define QUIRE_ISA neon_dotprod
#include "native/cpu/kernels_of_isa.h"
