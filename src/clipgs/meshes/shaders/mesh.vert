#version 330 core

// The model matrix is only a translation (pyrender sorts translucent parts by it), so normals need no transform.
layout(location = 0) in vec3 position;
#ifdef NORMAL_LOC
layout(location = NORMAL_LOC) in vec3 normal;
out vec3 frag_normal;
#endif
#ifdef TEXCOORD_0_LOC
layout(location = TEXCOORD_0_LOC) in vec2 texcoord_0;
out vec2 uv_0;
#endif
#ifdef COLOR_0_LOC
layout(location = COLOR_0_LOC) in vec4 color_0;
out vec4 vertex_color;
#endif
layout(location = INST_M_LOC) in mat4 inst_m;

uniform mat4 M;
uniform mat4 V;
uniform mat4 P;

out vec3 frag_position;

void main()
{
    vec4 world = M * (inst_m * vec4(position, 1.0));
    gl_Position = P * (V * world);
    frag_position = world.xyz;
#ifdef NORMAL_LOC
    frag_normal = normal;
#endif
#ifdef TEXCOORD_0_LOC
    uv_0 = texcoord_0;
#endif
#ifdef COLOR_0_LOC
    vertex_color = color_0;
#endif
}
