/* Print the sizes of the structures that cross from Python into llama.cpp, as this compiler lays them out. */
#include <stdio.h>

#include "llama.h"

#define SIZE(name) printf("%s\n  \"%s\": %zu", comma, #name, sizeof(struct name)), comma = ","

int main(void) {
    const char *comma = "";
    printf("{");
    SIZE(llama_model_params);
    SIZE(llama_context_params);
    SIZE(llama_batch);
    SIZE(llama_sampler_chain_params);
    SIZE(llama_token_data);
    SIZE(llama_token_data_array);
    SIZE(llama_model_kv_override);
    printf("\n}\n");
    return 0;
}
